"""From artifacts to ``.mar`` files; ``archive/*/model-config.yaml`` is the list of models."""
