"""accel_flowers: fine-tune image classifiers on a folder of photos with Hugging Face Accelerate."""

__version__ = "0.1.0"
