"""What a network looks at: maps computed from its features and gradients; they know tensors and no tasks."""
