"""A job that is stopped goes on where it was, and ends with the parameters of one that never stopped, bit for bit.

    distnet run -n 2 --semantics sync --optimizer 'momentum(0.05)' --schedule 'cosine(updates=500, warmup=50)' \\
        --resume kept examples/schedule_and_resume.py

Press Ctrl-C while it counts its steps: the server writes a checkpoint. The same command goes on from there, in the data
as in the schedule, and prints at its end the same checksum as a run that was left alone (in another folder: --resume
elsewhere). The folder is then done: to begin anew, remove it.
"""

import time
import zlib

import numpy as np

import distnet

STEPS, BATCH, EXAMPLES, SIZE = 500, 32, 2_048, 64


def made_data():
    """Return examples of a linear function of 64 numbers, with noise."""
    random = np.random.default_rng(seed=1)
    x = random.normal(size=(EXAMPLES, SIZE))
    y = x @ random.normal(size=SIZE) + random.normal(scale=0.1, size=EXAMPLES)
    return x.astype(np.float32), y.astype(np.float32)


def batch_of(step, rank, workers):
    """Return the examples of one step: a worker's place in its data is the number of its step, and nothing else."""
    steps_per_epoch = EXAMPLES // workers // BATCH
    epoch, place = divmod(step, steps_per_epoch)
    return distnet.shard_indices(EXAMPLES, rank, workers, seed=1, epoch=epoch)[place * BATCH : (place + 1) * BATCH]


def main():
    """Train as one worker of `distnet run`."""
    x, y = made_data()
    with distnet.connect(parameters=[np.zeros(SIZE, np.float32)]) as client:
        begin = int(client.saved or 0)  # what save_with() said last, if a checkpoint has it
        (weights,) = client.pull()
        for step in range(begin, STEPS):
            mine = batch_of(step, client.rank, client.workers)
            gradient = x[mine].T @ (x[mine] @ weights - y[mine]) / BATCH
            time.sleep(0.01)  # stands for the work of a larger model
            client.save_with(str(step + 1).encode())  # travels with the next push, and is kept exactly if that is
            (weights,) = client.push_pull([gradient])
            if (step + 1) % 50 == 0:
                print(f"rank {client.rank}: step {step + 1}, begun at {begin}")
        (weights,) = client.finish()
        print(f"rank {client.rank}: {STEPS} steps; checksum of the parameters: {zlib.crc32(weights):08x}")


if __name__ == "__main__":
    main()
