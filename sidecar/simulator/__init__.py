"""A stand-in Auth Service and Mattermost on real sockets, for the demo, the tests and the benchmark only."""
