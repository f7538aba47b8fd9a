"""What people read and type: pure functions from requests to posts and from posts to commands."""
