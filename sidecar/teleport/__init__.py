"""The Auth Service: protobuf over gRPC over mutual TLS."""
