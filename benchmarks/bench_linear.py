"""The linear protocol on 40,091 x 256 features and 60 classes, 5 learning rates: all at once against five runs, one thread.

Two usual ways: the same loop once a rate, and what is commonly written (TensorDataset, DataLoader, nn.Linear, SGD, one
run a rate). Fewer epochs are timed than the protocol has; epochs are alike. Then every head is compared to its own run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from c2vl_evaluation.protocols import linear
from c2vl_manifests.recipe import LinearConfig
from timing import PROCESSOR, Parser, Spent, compare, count, report_spent, timed

SAMPLES, DIM, CLASSES, RATES = 40_091, 256, 60, (0.01, 0.1, 1.0, 3.0, 10.0)


def usual(x: Tensor, y: Tensor, lr: float, epochs: int) -> None:
    """Train one layer as it is commonly written."""
    layer = nn.Linear(DIM, CLASSES)
    optimiser = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    for _ in range(epochs):
        for rows, labels in DataLoader(TensorDataset(x, y), 1024, shuffle=True):
            optimiser.zero_grad()
            F.cross_entropy(layer(rows), labels).backward()
            optimiser.step()


def main() -> None:
    """Print the lines."""
    parser = Parser(__doc__)
    parser.add_argument("--epochs", type=count, default=2, help="that are timed (default 2)")
    options = parser.parse_args()
    epochs = options.epochs
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    x = torch.randn(SAMPLES, DIM, generator=generator) + 0.3 * torch.randn(CLASSES, DIM, generator=generator)[y]
    config = LinearConfig(epochs=epochs, milestones=(80,))

    def together() -> linear.Heads:
        return linear.fit(x, y, CLASSES, RATES, config, 0)

    def apart() -> list[linear.Heads]:
        return [linear.fit(x, y, CLASSES, (rate,), config, 0) for rate in RATES]

    def usually() -> None:
        for rate in RATES:
            usual(x, y, rate, epochs)

    ways = {"the same loop": apart, "a DataLoader and nn.Linear": usually}
    for way, run in ways.items():
        name = f"{epochs} epochs, 5 rates, {way} once a rate"
        compare(name, together, run, options.pairs, judged_by=PROCESSOR)
    config = LinearConfig(epochs=20, milestones=(16,))
    spent: list[Spent] = []
    all_heads, alone = timed(together, spent), apart()
    worst = max(
        float((all_heads.weight[n] - alone[n].weight[0]).abs().max() / alone[n].weight[0].abs().max())
        for n in range(len(RATES))
    )
    report_spent("20 epochs, 5 rates, at once", spent, weights_differ_from_their_own_runs=worst)


if __name__ == "__main__":
    main()
