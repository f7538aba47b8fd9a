"""Generated from teleport.proto."""
