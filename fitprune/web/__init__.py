"""What listens on a port: `fitprune serve`, the demo, and the checks that untrusted requests and images pass before either."""
