"""Train a strategy on a running backend and watch it: python examples/train_and_watch.py 127.0.0.1:50051"""

import sys
from pathlib import Path

from ktrdr_client import Client, TrainingSpec

with Client(sys.argv[1]) as client:
    strategy = Path("strategies/neuro_mean_reversion.yaml").read_text()
    training = client.train(TrainingSpec(strategy_yaml=strategy, epochs=3))
    for event in client.stream_progress(training.training_id):
        print(f"{event.overall:4.0%} {event.detail}")
    done = client.get_training(training.training_id)
    print(done.state, done.result and done.result.test_metrics)
