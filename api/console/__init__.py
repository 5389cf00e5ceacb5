"""The console: pages for people at `/`, made on the server, that do what the API does."""
