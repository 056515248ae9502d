"""The sidecar: routes next to TorchServe, each translated to a model's predictions and back."""
