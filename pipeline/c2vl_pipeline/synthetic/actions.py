"""Actions of the synthetic dataset: each is a function that edits a rest pose over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from c2vl_pipeline.synthetic.body import Floats, Person, Pose, Take, rest, smooth, solve


def _drink(pose: Pose, take: Take) -> None:
    tilt = 0.5 + 0.5 * np.sin(take.cycle / 2)
    pose.reach(0, [-0.02, -0.45, 0.4], np.ones(take.frames))
    pose.reach(0, take.spot(-0.26, 0.24, 0.34) + tilt[:, None] * [0, 0.06, -0.03], take.envelope)
    pose.head[:, 0] -= 0.4 * tilt * take.envelope * take.size


def _phone_call(pose: Pose, take: Take) -> None:
    pose.reach(0, [-0.02, -0.45, 0.4], np.ones(take.frames))
    pose.reach(0, take.spot(-0.08, 0.33, 0.06), take.envelope)
    pose.lean[:, 1] += 0.06 * take.envelope


def _sit_down(pose: Pose, take: Take) -> None:
    pose.sit(take.ramp)


def _stand_up(pose: Pose, take: Take) -> None:
    pose.sit(1 - take.ramp)


def _wave(pose: Pose, take: Take) -> None:
    swing = 0.28 * take.size * np.sin(take.cycle)[:, None]
    pose.reach(0, take.spot(0.3, 0.45, 0.32) + swing * [1, -0.15, 0], take.envelope)


def _point(pose: Pose, take: Take) -> None:
    aim = take.rng.uniform([-0.25, -0.1], [0.55, 0.55])
    pose.reach(0, take.spot(aim[0], aim[1], 0.85) + take.wander(0.03, 3), take.envelope)
    pose.head[:, 1] += 0.4 * aim[0] * take.envelope


def _punch(pose: Pose, take: Take) -> None:
    thrust = smooth(2.2 * np.sin(take.cycle * 0.75) - 0.5)
    pose.reach(0, take.spot(-0.1, -0.12, 0.4), take.envelope)
    pose.reach(1, take.spot(-0.15, -0.1, 0.42), take.envelope * take.rng.uniform(0.2, 1))
    pose.reach(0, take.spot(-0.2, 0.08, 0.97), take.envelope * thrust)
    pose.lean[:, 0] += 0.15 * take.envelope * thrust
    pose.lean[:, 2] += 0.35 * take.size * take.envelope * thrust


def _punched(pose: Pose, take: Take) -> None:
    pose.lean[:, 0] -= 0.3 * take.size * take.envelope * smooth(2.2 * np.sin(take.cycle * 0.75) - 0.6)
    pose.reach(0, take.spot(-0.1, 0.05, 0.4), take.envelope * take.rng.uniform(0, 0.9))


def _shake_hands(pose: Pose, take: Take) -> None:
    shake = 0.12 * take.size * np.sin(1.5 * take.cycle)[:, None]
    pose.reach(0, take.spot(-0.3, -0.3, 0.75) + shake * [0, 1, 0], take.envelope)
    pose.lean[:, 0] += 0.12 * take.envelope


def _clap(pose: Pose, take: Take) -> None:
    gap = 0.1 + 0.22 * take.size * np.abs(np.sin(take.cycle))
    for side in (0, 1):
        target = take.spot(-0.36, -0.2, 0.6) + gap[:, None] * [1, 0, 0]
        pose.reach(side, target, take.envelope)


def _raise_arms(pose: Pose, take: Take) -> None:
    for side in (0, 1):
        pose.reach(side, take.spot(0.5, 0.2, 0.3), np.sqrt(take.envelope))
        pose.reach(side, take.spot(0.12, 0.93, 0.05), take.envelope)


def _kick(pose: Pose, take: Take) -> None:
    swing = smooth(np.sin(take.cycle * 0.6)) * take.envelope * take.size
    pose.feet[:, 0] += swing[:, None] * [0, 0.42, 0.68]
    pose.feet[:, 0, 2] -= take.envelope * (1 - swing) * 0.12
    pose.lean[:, 0] -= 0.2 * swing
    pose.hands[:, 1] += swing[:, None] * [0.2, 0.2, 0.3]


def _squat(pose: Pose, take: Take) -> None:
    down = take.envelope * take.size * (0.6 + 0.4 * np.sin(take.cycle * 0.6))
    pose.pelvis += down[:, None] * [0, -0.42, -0.16]
    pose.lean[:, 0] += 0.55 * down
    for side in (0, 1):
        pose.reach(side, take.spot(0, -0.05, 0.85), 0.8 * take.envelope)


def _throw(pose: Pose, take: Take) -> None:
    back = np.sin(np.pi * np.clip(take.ramp * 1.6, 0, 1))
    cast = np.sin(np.pi * np.clip(take.ramp * 1.8 - 0.8, 0, 1))
    pose.reach(0, take.spot(0.5, 0.45, -0.3), back)
    pose.reach(0, take.spot(-0.05, 0.25, 0.92), cast)
    pose.lean[:, 2] += 0.5 * take.size * (cast - back)
    pose.feet[:, 1, 2] += 0.25 * smooth(take.ramp * 2 - 0.5)


def _bow(pose: Pose, take: Take) -> None:
    pose.lean[:, 0] += 0.95 * take.size * take.envelope
    pose.head[:, 0] += 0.3 * take.envelope
    pose.pelvis[:, 2] -= 0.08 * take.envelope


def _hug(pose: Pose, take: Take) -> None:
    for side in (0, 1):
        pose.reach(side, take.spot(0.45, 0.0, 0.6), np.sqrt(take.envelope))
        pose.reach(side, take.spot(-0.2, -0.1 + 0.25 * side, 0.72), take.envelope)
    pose.pelvis[:, 2] += 0.2 * take.envelope
    pose.feet[:, :, 2] += 0.2 * take.envelope[:, None]
    pose.lean[:, 0] += 0.15 * take.envelope


def _march(pose: Pose, take: Take) -> None:
    for side, sign in ((0, 1), (1, -1)):
        step = np.maximum(sign * np.sin(take.cycle), 0) * take.envelope * take.size
        pose.feet[:, side] += step[:, None] * [0, 0.26, 0.06]
        pose.hands[:, side, 2] -= 0.35 * sign * np.sin(take.cycle) * take.envelope * take.size


def _salute(pose: Pose, take: Take) -> None:
    pose.reach(0, take.spot(-0.12, 0.42, 0.25), take.envelope)


def _check_watch(pose: Pose, take: Take) -> None:
    pose.reach(0, take.spot(-0.35, -0.1, 0.45), take.envelope)
    pose.head += take.envelope[:, None] * [0.35, 0.2]


def _jump(pose: Pose, take: Take) -> None:
    height = np.sin(take.cycle) * take.envelope * take.size
    pose.pelvis[:, 1] += np.where(height > 0, 0.22, 0.16) * height
    pose.feet[:, :, 1] += 0.2 * np.maximum(height, 0)[:, None]


def _push(pose: Pose, take: Take) -> None:
    thrust = smooth(1.5 * np.sin(take.cycle * 0.6))
    for side in (0, 1):
        pose.reach(side, take.spot(-0.12, -0.1, 0.4), take.envelope)
        pose.reach(side, take.spot(-0.1, 0.05, 0.92), take.envelope * thrust)
    pose.lean[:, 0] += 0.22 * take.envelope * thrust


Move = Callable[[Pose, Take], None]


@dataclass(frozen=True)
class Action:
    """One class: the movement of side 0, the held object and, for two people, the partner's movement and distance."""

    name: str
    move: Move
    held: str | None = None
    partner: Move | None = None
    distance: float = 0.0
    seatable: bool = False


ACTIONS: tuple[Action, ...] = (
    Action("drink", _drink, held="cup", seatable=True),
    Action("phone call", _phone_call, held="phone", seatable=True),
    Action("sit down", _sit_down),
    Action("stand up", _stand_up),
    Action("wave", _wave, seatable=True),
    Action("point", _point, seatable=True),
    Action("punch another person", _punch, partner=_punched, distance=0.85),
    Action("shake hands", _shake_hands, partner=_shake_hands, distance=0.85),
    Action("clap", _clap, seatable=True),
    Action("raise both arms", _raise_arms, seatable=True),
    Action("kick", _kick),
    Action("squat", _squat),
    Action("throw", _throw, held="ball"),
    Action("bow", _bow),
    Action("hug", _hug, partner=_hug, distance=0.75),
    Action("march in place", _march),
    Action("salute", _salute, seatable=True),
    Action("check the watch", _check_watch, seatable=True),
    Action("jump up", _jump),
    Action("push another person", _push, partner=_punched, distance=0.75),
)
"""Every action, in the order of the classes A001, A002, ..."""


def perform(action: Action, person: Person, partner: Person, rng: Generator, frames: int) -> list[Floats]:
    """Return the joints of everyone on stage in world coordinates.

    Args:
        action: what is performed.
        person: the performer; `partner` is used by two-person actions only.
        partner: the second person.
        rng: random state of this performance.
        frames: T.

    Returns:
        One or two arrays (T, 25, 3) in metres, the performer's first; the floor is y = 0.
    """
    take = Take(person, rng, frames)
    pose = rest(take)
    seated = action.seatable and rng.random() < 0.2
    moved = smooth((np.linspace(0, 1, frames) - rng.uniform(-0.1, 0.5)) / 0.5)[:, None]
    step = rng.uniform(-0.35, 0.35, 2) * (not seated and rng.random() < 0.7)
    # drifting about: large in joints, which are centred on the first frame, and absent from crops
    place = rng.uniform(-0.3, 0.3, 2) + (moved - 0.5) * step + take.wander(0.35, 2)
    yaw = rng.uniform(-1, 1) * np.deg2rad(15) + take.wander(0.1, 1)[:, 0]
    action.move(pose, take)
    if seated:
        pose.sit(np.ones(frames))
    if action.partner is None:
        return [solve(pose, person, place, yaw)]
    other = Take(partner, rng, frames)
    other.envelope, other.cycle, other.ramp = take.envelope, take.cycle, take.ramp
    reply = rest(other)
    action.partner(reply, other)
    yaw = yaw + np.pi / 2 * (1 if rng.random() < 0.5 else -1)
    side = yaw.mean()
    arms = (person.upper_arm + person.forearm + partner.upper_arm + partner.forearm) / 2
    half = action.distance * arms / 0.53 * rng.uniform(0.9, 1.1) / 2 * np.array([np.sin(side), -np.cos(side)])
    return [
        solve(pose, person, place - half, yaw),
        solve(reply, partner, place + half, yaw + np.pi + other.wander(0.1, 1)[:, 0]),
    ]
