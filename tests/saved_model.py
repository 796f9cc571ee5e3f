"""Loads a program that the Rust test has exported: runs it, looks at its parameters, and takes a training step."""
import json
import sys
import torch

file, source, target, expected, names = sys.argv[1:]
source = torch.tensor(json.loads(source)).view(5, 6)
target = torch.tensor(json.loads(target)).view(5, 3)
module = torch.jit.load(file)

logits = module(source, target)
assert abs(logits.double().abs().sum().item() - float(expected)) < 1e-3, logits
memory, state = module.encode(source)
parts, _ = module.decode_step(target=target, memory=memory, state=state)
assert torch.allclose(parts, logits, atol=1e-6), "in parts"
# Another batch, another length.
assert module(source[:2, :4], target[:2, :1]).shape[:2] == (2, 1)

parameters = dict(module.named_parameters())
assert sorted(parameters) == names.split(","), sorted(parameters)
optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
losses = []
for _ in range(5):
    loss = torch.nn.functional.cross_entropy(module(source, target).flatten(0, 1), target.flatten())
    optimizer.zero_grad()
    loss.backward()
    assert all(p.grad is not None for p in parameters.values())
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
