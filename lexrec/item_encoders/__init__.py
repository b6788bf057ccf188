"""What turns an item index into a vector."""
