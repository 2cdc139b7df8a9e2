"""Parts of `bench_gpu.py`: the session, pre-training, full-size models, two processes."""
