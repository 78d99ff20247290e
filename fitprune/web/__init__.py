"""What listens on a port: the server, the demo, and what strangers may send."""
