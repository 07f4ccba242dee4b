"""The one learning-rate schedule that every recipe defaults to."""

import optax


def linear_schedule(
    learning_rate: float, num_steps: int, *, warmup_ratio: float = 0.1
) -> optax.Schedule:
    """Rise linearly to `learning_rate`, then fall linearly to zero at `num_steps`.

    Counted in updates, never in micro-batches or devices. The first update already moves: the
    warmup passes through `learning_rate / (warmup + 1)`, not through zero.

    Args:
      learning_rate: the peak.
      num_steps: updates in the run.
      warmup_ratio: share of the updates spent rising, in [0, 1).

    Raises:
      ValueError: if an argument is outside its range.

    >>> schedule = linear_schedule(1.0, 10, warmup_ratio=0.1)
    >>> [round(float(schedule(step)), 2) for step in (0, 1, 9)]
    [0.5, 1.0, 0.11]
    """
    if not learning_rate > 0 or num_steps < 1 or not 0.0 <= warmup_ratio < 1.0:
        raise ValueError(
            f"a linear schedule needs learning_rate > 0, num_steps >= 1 and 0 <= warmup_ratio < 1; "
            f"got {learning_rate}, {num_steps}, {warmup_ratio}"
        )
    warmup = int(num_steps * warmup_ratio)
    rise = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, max(warmup, 1))
    fall = optax.linear_schedule(learning_rate, 0.0, num_steps - warmup)
    return optax.join_schedules([rise, fall], [warmup])
