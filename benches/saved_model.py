"""The other half of `cargo bench --bench saved_model`: the same model, by torch.jit.trace + save, and torch.jit.load.

Prints the seconds, and the peak of resident memory above what was there before, in bytes.
"""
import sys
import time
import torch

WORDS, WIDTH, HIDDEN = 20_000, 512, 1024


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(WORDS, WIDTH)
        self.gru = torch.nn.GRU(WIDTH, HIDDEN, batch_first=True)
        self.out = torch.nn.Linear(HIDDEN, WORDS)

    def forward(self, words):
        return self.out(self.gru(self.embedding(words))[0])


def resident(name):
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


measure, path = sys.argv[1], f"{sys.argv[2]}/python.pt"
torch.randint(WORDS, (4, 8)) + 1
if measure == "export":
    model = Model().eval()
    example = torch.randint(WORDS, (2, 10))
    before, start = resident("VmRSS:"), time.perf_counter()
    with torch.no_grad():
        traced = torch.jit.trace(model, example, check_inputs=[(torch.randint(WORDS, (3, 7)),)])
    traced.save(path)
    seconds = time.perf_counter() - start
else:
    before, start = resident("VmRSS:"), time.perf_counter()
    model = torch.jit.load(path)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        model(torch.randint(WORDS, (3, 5)))
print(seconds, resident("VmHWM:") - before)
