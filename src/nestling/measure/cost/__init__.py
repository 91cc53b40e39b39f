"""What a plan would cost with more documents: bytes, time and money."""
