"""Real servers for the tests, each started on loopback, on a free port, with files of its own."""
