"""The routes that the Go services call, translated to TorchServe's predictions and back."""
