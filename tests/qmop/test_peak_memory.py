import torch

from qmop.peak_memory import peak_bytes

CPU, MEGA = torch.device("cpu"), 2**20


def test_peak_counts_what_is_alive_at_one_time() -> None:
    weight = torch.zeros(MEGA // 4)

    def freed() -> None:
        for _ in range(5):
            torch.zeros(MEGA // 4)

    def viewed() -> torch.Tensor:
        whole = torch.zeros(MEGA // 4)
        part = whole[:1]
        del whole
        torch.zeros(MEGA // 4)
        return part

    def growing() -> torch.Tensor:
        for size in (1, 2, 3):
            last = torch.zeros(size * MEGA // 4)
        return last

    assert peak_bytes(freed, CPU) == MEGA
    assert peak_bytes(growing, CPU) == 5 * MEGA  # the third is made while the second is still held
    assert peak_bytes(lambda: [torch.zeros(MEGA // 4) for _ in range(5)], CPU) == 5 * MEGA
    assert peak_bytes(viewed, CPU) == 2 * MEGA
    assert peak_bytes(lambda: weight.view(2, -1).add_(1).t(), CPU) == 0
    assert peak_bytes(lambda: weight + 1, CPU) == MEGA
