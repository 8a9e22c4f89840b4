"""A stage small enough to train in a test, and a program that trains it: `python -m tests.train.toy OUT [key=value …]`."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gmcli.train.config import StageSettings


class ToyModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)  # has buffers that training changes
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 1)

    def forward(self, batch):
        found = self.head(self.drop(self.norm(self.frozen(batch["x"]))))
        loss = ((found - batch["nested"][0]) ** 2).mean()
        return {"loss": loss, "absolute": (found - batch["nested"][0]).abs().mean()}


def make_batch(index: int):
    rng = np.random.default_rng([5, index])
    x = torch.from_numpy(rng.standard_normal((16, 4)).astype(np.float32))
    return {"x": x, "nested": [x.sum(dim=1, keepdim=True)]}


class ToyStage:
    name = "toy"

    def __init__(self, kill_at: int | None = None, number: int = signal.SIGKILL) -> None:
        self.module = ToyModule()
        self.kill_at, self.number = kill_at, number
        self.batches: list[int] = []
        self.validated = 0
        self.make = make_batch

    def batch(self, index):
        self.batches.append(index)
        if index == self.kill_at:
            os.kill(os.getpid(), self.number)
        return make_batch(index)

    def validate(self):
        self.module.eval()
        self.validated += 1
        batch = make_batch(10**6)
        return {"score": -float(self.module(batch)["loss"]), "half": 0.5}

    def pictures(self):
        return {"dots": np.full((4, 6, 3), 200, np.uint8)}

    def save(self, folder: Path) -> None:
        torch.save(self.module.head.state_dict(), folder / "head.pt")


def toy_settings(**changes) -> StageSettings:
    values = {
        "steps": 12,
        "accumulation": 2,
        "lr": 0.05,
        "warmup_steps": 3,
        "save_every": 4,
        "validate_every": 4,
        "log_every": 2,
    }
    return StageSettings(**values | changes)


if __name__ == "__main__":
    from gmcli.train.loop import train_stage

    out, kill_at, number, workers = sys.argv[1:]
    stage = ToyStage(int(kill_at) if kill_at != "-" else None, int(number))
    train_stage(stage, toy_settings(loader_workers=int(workers)), Path(out), seed=1)
