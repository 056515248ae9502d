"""Tests of the whole: real TorchServe, real archives, real clients."""
