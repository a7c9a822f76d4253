"""Networks behind HTTP: requests in one process, each network in one of its own."""
