"""Where a server comes from: connections, the session with the agent, the inventory."""
