# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a robot's bags without truth to a student that is better on that robot.

    look     is this camera usable, how far does it see, what does its picture look like
    select   frames that teach, split by time into train, validation and held-out
    label    a teacher's answers, and which of their pixels to believe
    render   procedural pairs of this camera, so that nothing is forgotten
    distil   train on both, from the shipped student
    prune    to the latency that was asked for
    gate     is it better here, no worse elsewhere, and still a stereo matcher
    deliver  the model folder

A stage is one module with one function of its name, which takes a `RunFolder` and returns what
it has to say of itself. It knows the stages before it only through what they left on disk.
"""
