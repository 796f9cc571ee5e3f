"""Makes `encoder.pt`: an encoder of words, trained in PyTorch to foretell the next letter.

    python3 make_encoder.py ../pronounce/data/cmudict-subset.dict encoder.pt

Needs torch (made with 2.13); takes about a minute.
"""
import sys

import torch
from torch import nn


class Encoder(nn.Module):
    """Letters, numbered from 1, 0 for padding: [words, letters] -> [words, letters, 48]."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(27, 16, padding_idx=0)
        self.rnn = nn.GRU(16, 48, batch_first=True)

    def forward(self, letters):
        return self.rnn(self.embedding(letters))[0]


def main(dictionary, path):
    torch.manual_seed(1)
    with open(dictionary) as lines:
        words = [line.split(" ", 1)[0] for line in lines]
    # Every twentieth word is held out, here and in the example.
    words = [word for i, word in enumerate(words) if i % 20 != 19]
    longest = max(map(len, words))
    letters = torch.tensor([[ord(c) - 96 for c in word] + [0] * (longest - len(word)) for word in words])
    encoder, head = Encoder(), nn.Linear(48, 27)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for step in range(2000):
        batch = letters[torch.randint(len(letters), (256,))]
        scores = head(encoder(batch[:, :-1]))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 499:
            print(f"step {step + 1}: {loss.item():.3f}")
    torch.save(encoder.state_dict(), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
