"""The whole pipeline on easy-VQA, offline and on two CPU cores: `python -m train.quickstart`."""
