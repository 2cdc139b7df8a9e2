"""People and what they do: the kinematic model behind the synthetic dataset (`c2vl_pipeline.synthetic.dataset`).

A `Pose` states, over time, where pelvis, torso, head, wrists and ankles should be, in units of the person's
limbs; `solve` turns it into the 25 joints of `KINECT_V2`. An action is a function that edits a rest pose.
World axes are a Kinect's, right-handed: x to the left of the middle camera, y up, z away from it, metres. A
person at yaw 0 faces that camera, and so has the left side at smaller x than the right one. Side 0 is the active
hand or foot (left for left-handers), side 1 the other; targets are mirrored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from c2vl_manifests.layouts import KINECT_V2

Floats = NDArray[np.float64]
FPS = 30
J = {name: index for index, name in enumerate(KINECT_V2.names)}


@dataclass(frozen=True)
class Person:
    """Body and habits of one subject: lengths in metres, colours as BGR, habits as factors and offsets."""

    height: float
    torso: float
    upper_arm: float
    forearm: float
    thigh: float
    shank: float
    shoulders: float
    hips: float
    bulk: float
    left_handed: bool
    tempo: float
    amplitude: float
    stoop: float
    swivel: float
    habit: Floats
    rest: Floats
    colours: dict[str, tuple[int, int, int]]
    long_sleeves: bool

    @classmethod
    def draw(cls, rng: Generator) -> Person:
        """Draw a person: an adult of 1.48 to 1.96 m with individual proportions, habits and clothes."""
        height = float(np.clip(rng.normal(1.7, 0.1), 1.48, 1.96))

        def part(share: float, spread: float = 0.05) -> float:
            return height * share * float(rng.normal(1, spread))

        skin = np.array([150, 185, 225]) * rng.uniform(0.4, 1.02)
        hair = np.array([60, 75, 95]) * rng.uniform(0.2, 1.8)
        shades = {"skin": skin, "hair": hair, "shoes": np.full(3, rng.uniform(20, 200))}
        shades |= {name: rng.uniform(25, 235, 3) for name in ("shirt", "trousers")}
        return cls(
            height=height, torso=part(0.295), upper_arm=part(0.165), forearm=part(0.145), thigh=part(0.235),
            shank=part(0.235), shoulders=part(0.108, 0.08), hips=part(0.05, 0.08), bulk=rng.normal(1, 0.1),
            left_handed=bool(rng.random() < 0.3),
            tempo=rng.uniform(0.8, 1.25), amplitude=rng.uniform(0.75, 1.1),
            stoop=rng.normal(0.05, 0.06), swivel=rng.normal(0, 0.25), habit=rng.normal(0, 0.06, 3),
            rest=np.array([0.15, -0.93, 0.08]) + rng.normal(0, 0.05, 3),
            colours={k: (int(v[0]), int(v[1]), int(v[2])) for k, v in shades.items()},
            long_sleeves=bool(rng.random() < 0.5),
        )  # fmt: skip


@dataclass
class Pose:
    """Targets over time. Shapes: pelvis (T, 3), lean (T, 3), head (T, 2), hands and feet (T, 2, 3).

    `pelvis` and `feet` are offsets from standing (out, up, forward) in leg lengths; `lean` is pitch, roll,
    twist and `head` pitch, yaw in radians; `hands` are wrists from the shoulder (out, up, forward) in arms.
    """

    pelvis: Floats
    lean: Floats
    head: Floats
    hands: Floats
    feet: Floats

    def reach(self, side: int, target: ArrayLike, weight: Floats) -> None:
        """Move the wrist of `side` towards `target` ((3,) or (T, 3)) by `weight` (T,) in 0..1."""
        w = weight[:, None]
        self.hands[:, side] = (1 - w) * self.hands[:, side] + w * np.asarray(target, dtype=np.float64)

    def sit(self, weight: Floats) -> None:
        """Lower the pelvis onto a stool by `weight` (T,) in 0..1; the torso tips forward on the way."""
        self.pelvis += weight[:, None] * np.array([0.0, -0.46, -0.4])
        self.lean[:, 0] += 1.6 * weight * (1 - weight)


@dataclass
class Take:
    """One performance: its performer, its clock, and what the performer's partner needs to know."""

    person: Person
    rng: Generator
    frames: int
    envelope: Floats = field(init=False)
    cycle: Floats = field(init=False)
    ramp: Floats = field(init=False)
    size: float = field(init=False)

    def __post_init__(self) -> None:
        rng, time = self.rng, np.arange(self.frames) / FPS
        u = np.linspace(0, 1, self.frames)
        start = rng.uniform(-0.1, 0.3)
        stop = start + rng.uniform(0.6, 0.9)
        rise = rng.uniform(0.12, 0.28) / self.person.tempo
        self.envelope = _smooth((u - start) / rise) * _smooth((stop - u) / rise)
        self.cycle = 2 * np.pi * (self.person.tempo * rng.uniform(1.0, 1.6) * time + rng.random())
        middle, width = rng.uniform(0.32, 0.68), rng.uniform(0.35, 0.6) / self.person.tempo
        self.ramp = _smooth((u - middle) / width + 0.5)
        self.size = self.person.amplitude * rng.uniform(0.88, 1.12)

    def wander(self, scale: float, width: int) -> Floats:
        """Slow involuntary movement, shape (T, width), of standard deviation about `scale`."""
        time = np.arange(self.frames)[:, None, None] / FPS
        rate, phase = self.rng.uniform(0.1, 0.9, (3, width)), self.rng.uniform(0, 2 * np.pi, (3, width))
        weight = self.rng.normal(0, 1, (3, width)) * scale / 1.2
        moved: Floats = (weight * np.sin(2 * np.pi * rate * time + phase)).sum(1)
        return moved

    def spot(self, out: float, up: float, forward: float) -> Floats:
        """A hand target (3,) blurred by the performer's habit and by this take."""
        return np.array([out, up, forward]) + self.person.habit + self.rng.normal(0, 0.045, 3)


def _smooth(x: Floats) -> Floats:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def rest(take: Take) -> Pose:
    """An idle stance with sway, weight shifts, and the performer's way to keep the arms."""
    n, rng, who = take.frames, take.rng, take.person
    hands = np.repeat(who.rest[None, None] + rng.normal(0, 0.04, (1, 2, 3)), n, 0)
    pose = Pose(np.zeros((n, 3)), np.zeros((n, 3)), np.zeros((n, 2)), hands, np.zeros((n, 2, 3)))
    pose.pelvis += take.wander(0.03, 3) * [1, 0.2, 1]
    pose.lean += take.wander(0.06, 3)
    pose.lean[:, 0] += who.stoop
    pose.head += take.wander(0.12, 2) + rng.normal(0, 0.1, 2)
    pose.hands += np.stack([take.wander(0.05, 3), take.wander(0.05, 3)], 1)
    pose.feet[:, :, 0] += rng.uniform(-0.05, 0.12)
    pose.feet[:, 0, 2] += rng.normal(0, 0.06)
    style = rng.random()
    if style < 0.12:
        pose.reach(1, [0.12, -0.55, 0.02], np.full(n, 0.9))  # hand on the hip
    elif style < 0.24:
        pose.reach(1, [-0.2, -0.5, 0.3], np.full(n, 0.9))  # forearm across the belly
    elif style < 0.34:
        pose.reach(1, take.spot(-0.2, 0.2, 0.3), 0.8 * np.sin(np.pi * take.ramp))  # touches the face
    return pose


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
    thrust = _smooth(2.2 * np.sin(take.cycle * 0.75) - 0.5)
    pose.reach(0, take.spot(-0.1, -0.12, 0.4), take.envelope)
    pose.reach(1, take.spot(-0.15, -0.1, 0.42), take.envelope * take.rng.uniform(0.2, 1))
    pose.reach(0, take.spot(-0.2, 0.08, 0.97), take.envelope * thrust)
    pose.lean[:, 0] += 0.15 * take.envelope * thrust
    pose.lean[:, 2] += 0.35 * take.size * take.envelope * thrust


def _punched(pose: Pose, take: Take) -> None:
    pose.lean[:, 0] -= 0.3 * take.size * take.envelope * _smooth(2.2 * np.sin(take.cycle * 0.75) - 0.6)
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
    swing = _smooth(np.sin(take.cycle * 0.6)) * take.envelope * take.size
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
    pose.feet[:, 1, 2] += 0.25 * _smooth(take.ramp * 2 - 0.5)


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
    thrust = _smooth(1.5 * np.sin(take.cycle * 0.6))
    for side in (0, 1):
        pose.reach(side, take.spot(-0.12, -0.1, 0.4), take.envelope)
        pose.reach(side, take.spot(-0.1, 0.05, 0.92), take.envelope * thrust)
    pose.lean[:, 0] += 0.22 * take.envelope * thrust


Move = Callable[[Pose, Take], None]


@dataclass(frozen=True)
class Action:
    """One class: how side 0 moves, what it holds, and, for two people, the partner's move and distance."""

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
    seated = action.seatable and rng.random() < 0.4
    moved = _smooth((np.linspace(0, 1, frames) - rng.uniform(-0.1, 0.5)) / 0.5)[:, None]
    step = rng.uniform(-0.35, 0.35, 2) * (not seated and rng.random() < 0.7)
    place = rng.uniform(-0.3, 0.3, 2) + (moved - 0.5) * step
    yaw = rng.uniform(-1, 1) * np.deg2rad(25) + take.wander(0.1, 1)[:, 0]
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


def _turn(pitch: Floats, roll: Floats, twist: Floats) -> Floats:
    """Rotations (T, 3, 3) in the axes (left, up, forward): twist, roll, pitch (forward is positive)."""
    one, zero = np.ones_like(pitch), np.zeros_like(pitch)
    c, s = np.cos, np.sin
    bend = [[one, zero, zero], [zero, c(pitch), -s(pitch)], [zero, s(pitch), c(pitch)]]
    tip = [[c(roll), -s(roll), zero], [s(roll), c(roll), zero], [zero, zero, one]]
    spin = [[c(twist), zero, s(twist)], [zero, one, zero], [-s(twist), zero, c(twist)]]
    a, b, d = (np.moveaxis(np.array(m), 2, 0) for m in (bend, tip, spin))
    turned: Floats = a @ b @ d
    return turned


def _bend(root: Floats, goal: Floats, upper: float, lower: float, pole: Floats) -> tuple[Floats, Floats]:
    """Two-bone inverse kinematics: the middle joint and the end, both (T, 3), bent towards `pole`."""
    line = goal - root
    far = np.linalg.norm(line, axis=-1, keepdims=True) + 1e-9
    axis = line / far
    far = np.clip(far, abs(upper - lower) + 0.02, 0.995 * (upper + lower))
    along = (upper**2 - lower**2 + far**2) / (2 * far)
    side = pole - (pole * axis).sum(-1, keepdims=True) * axis
    side /= np.linalg.norm(side, axis=-1, keepdims=True) + 1e-9
    return root + along * axis + np.sqrt(np.maximum(upper**2 - along**2, 0)) * side, root + far * axis


def solve(pose: Pose, person: Person, place: Floats, yaw: Floats) -> Floats:
    """Turn targets into joints.

    Args:
        pose: targets over time.
        person: lengths of the body.
        place: (x, z) of the person on the floor over time, (T, 2), metres.
        yaw: heading over time (T,) in radians; 0 faces the middle camera.

    Returns:
        Joints (T, 25, 3) of `KINECT_V2` in world coordinates, metres.
    """
    leg, arm, ankle = person.thigh + person.shank, person.upper_arm + person.forearm, 0.045 * person.height
    out = np.zeros((len(pose.pelvis), KINECT_V2.joints, 3))  # axes (left, up, forward) until the last lines
    base = pose.pelvis * leg + [0, leg + ankle, 0]
    half = _turn(0.6 * pose.lean[:, 0], 0.6 * pose.lean[:, 1], 0.5 * pose.lean[:, 2])
    trunk = _turn(pose.lean[:, 0], pose.lean[:, 1], pose.lean[:, 2])
    nod = trunk @ _turn(pose.head[:, 0], np.zeros(len(out)), pose.head[:, 1])
    up = np.array([0.0, 1.0, 0.0])
    out[:, J["spine_base"]] = base
    out[:, J["spine_mid"]] = mid = base + half @ (0.5 * person.torso * up)
    out[:, J["spine_shoulder"]] = top = mid + trunk @ (0.5 * person.torso * up)
    out[:, J["neck"]] = neck = top + trunk @ (0.045 * person.height * up)
    out[:, J["head"]] = neck + nod @ (person.height * np.array([0, 0.08, 0.015]))
    for name, sign in (("left", 1.0), ("right", -1.0)):
        mirror = np.array([sign, 1.0, 1.0])
        side = int(person.left_handed != (name == "left"))
        hip = base + mirror * [person.hips, -0.02, 0]
        foot = pose.feet[:, side] * leg * mirror + [sign * person.hips * 1.1, ankle, 0]
        knee, sole = _bend(hip, foot, person.thigh, person.shank, np.array([0.25 * sign, 0.1, 1.0]))
        shoulder = top + trunk @ (mirror * [person.shoulders, -0.03, 0])
        wrist = shoulder + np.einsum("tij,tj->ti", trunk, pose.hands[:, side] * arm * mirror)
        pole = trunk @ (mirror * [0.65 + person.swivel, -0.8, -0.45])
        elbow, wrist = _bend(shoulder, wrist, person.upper_arm, person.forearm, pole)
        along = (wrist - elbow) / person.forearm
        inward = -sign * trunk @ np.array([1.0, 0.0, 0.0]) * 0.04
        toes = np.array([0.03 * sign, -0.6 * ankle, 0.13])
        limb = {"hip": hip, "knee": knee, "ankle": sole, "foot": sole + toes}
        limb |= {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hand": wrist + 0.075 * along}
        limb |= {"hand_tip": wrist + 0.15 * along, "thumb": wrist + 0.08 * along + inward}
        for joint, where in limb.items():
            out[:, J[f"{joint}_{name}"]] = where
    left, forward = out[..., 0], out[..., 2]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x = place[:, :1] - left * cos + forward * sin
    z = place[:, 1:] - left * sin - forward * cos
    return np.stack([x, out[..., 1], z], -1)
