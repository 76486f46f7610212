"""What a BatchNorm can become: each target is one object, in a file of its own."""
