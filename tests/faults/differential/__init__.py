"""Random training programs, run by PyTorch and by mlp_ext, which must come to the same.

A case is made of one seed: a small model, a loss, an optimizer, a way to train (the loop with fuse,
with the modules or the functions of mlp_ext; TrainStep; TrainStep.epoch), a sequence of operations,
and none to three disturbances between or during them (memory freed, tensors swapped, hooks,
patches, modes, subclasses, ...). The whole program runs twice from the same seed, and what can be
seen of it is compared: losses, gradients, parameters, states, buffers, warnings, types of errors.

    plan.py           draws a case
    models.py         its model and its batches      losses.py, optimizers.py  the rest
    world.py          one run of it: the operations, and what is seen after each
    memory.py, tensors.py, options.py      disturbances: freed memory, tensors, the optimizer's own
    surgery.py        disturbances: modules, hooks
    contexts.py       disturbances: patches and modes
    meanwhile.py      disturbances by a second thread
    compare.py, check.py                   the comparison; a case from seed to failure

    python -m tests.faults.differential --cases 100000 --processes 2    from the root
    python -m tests.faults.differential --case 17 --verbose             one case again
"""
