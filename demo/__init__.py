"""The main job on a real server, end to end."""
