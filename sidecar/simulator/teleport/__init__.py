"""An embedded Teleport Auth Service with real TLS and real gRPC."""
