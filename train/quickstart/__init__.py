"""The whole pipeline on easy-VQA, offline, on two CPU cores: `python -m train.quickstart`."""
