"""Kinematic model of people in the synthetic dataset.

A `Pose` states, over time, where pelvis, torso, head, wrists and ankles should be, in units of the person's
limbs; `solve` turns it into the 25 joints of `KINECT_V2`.
World axes are a Kinect's, right-handed: x to the left of the middle camera, y up, z away from it, metres. A
person at yaw 0 faces that camera, and so has the left side at smaller x than the right one. Side 0 is the active
hand or foot (left for left-handers), side 1 the other; targets are mirrored.
"""

from __future__ import annotations

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
        """Draw a person: a child or an adult of 1.2 to 1.96 m with individual proportions, habits and clothes."""
        height = rng.uniform(1.2, 1.96)

        def part(share: float, spread: float = 0.05) -> float:
            return height * share * float(rng.normal(1, spread))

        skin = np.array([150, 185, 225]) * rng.uniform(0.4, 1.02)
        hair = np.array([60, 75, 95]) * rng.uniform(0.2, 1.8)
        shades = {"skin": skin, "hair": hair, "shoes": np.full(3, rng.uniform(20, 200))}
        shades |= {name: rng.uniform(25, 235, 3) for name in ("shirt", "trousers")}
        return cls(
            height=height, torso=part(0.295), upper_arm=part(0.165), forearm=part(0.145), thigh=part(0.235),
            shank=part(0.235), shoulders=part(0.108, 0.08), hips=part(0.05, 0.08), bulk=rng.normal(1, 0.1),
            left_handed=bool(rng.random() < 0.1),
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
    """One performance: its performer and timing, which a partner shares."""

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
        self.envelope = smooth((u - start) / rise) * smooth((stop - u) / rise)
        self.cycle = 2 * np.pi * (self.person.tempo * rng.uniform(1.0, 1.6) * time + rng.random())
        middle, width = rng.uniform(0.32, 0.68), rng.uniform(0.35, 0.6) / self.person.tempo
        self.ramp = smooth((u - middle) / width + 0.5)
        self.size = self.person.amplitude * rng.uniform(0.88, 1.12)

    def wander(self, scale: float, width: int) -> Floats:
        """Return slow involuntary movement, shape (T, width), with a standard deviation of about `scale`."""
        time = np.arange(self.frames)[:, None, None] / FPS
        rate, phase = self.rng.uniform(0.1, 0.9, (3, width)), self.rng.uniform(0, 2 * np.pi, (3, width))
        weight = self.rng.normal(0, 1, (3, width)) * scale / 1.2
        moved: Floats = (weight * np.sin(2 * np.pi * rate * time + phase)).sum(1)
        return moved

    def spot(self, out: float, up: float, forward: float) -> Floats:
        """Return a hand target (3,) varied by the performer's habit and by this take."""
        return np.array([out, up, forward]) + self.person.habit + self.rng.normal(0, 0.045, 3)


def smooth(x: Floats) -> Floats:
    """Rise smoothly from 0 to 1 as `x` does; values outside are clipped."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def rest(take: Take) -> Pose:
    """Return an idle stance with sway, weight shifts and the performer's habitual arms."""
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
    if style < 0.05:
        pose.reach(1, [0.12, -0.55, 0.02], np.full(n, 0.9))  # hand on the hip
    elif style < 0.1:
        pose.reach(1, [-0.2, -0.5, 0.3], np.full(n, 0.9))  # forearm across the belly
    elif style < 0.15:
        pose.reach(1, take.spot(-0.2, 0.2, 0.3), 0.8 * np.sin(np.pi * take.ramp))  # touches the face
    return pose


def _turn(pitch: Floats, roll: Floats, twist: Floats) -> Floats:
    """Return rotations (T, 3, 3) in the axes (left, up, forward): twist, roll, pitch (forward is positive)."""
    one, zero = np.ones_like(pitch), np.zeros_like(pitch)
    c, s = np.cos, np.sin
    bend = [[one, zero, zero], [zero, c(pitch), -s(pitch)], [zero, s(pitch), c(pitch)]]
    tip = [[c(roll), -s(roll), zero], [s(roll), c(roll), zero], [zero, zero, one]]
    spin = [[c(twist), zero, s(twist)], [zero, one, zero], [-s(twist), zero, c(twist)]]
    a, b, d = (np.moveaxis(np.array(m), 2, 0) for m in (bend, tip, spin))
    turned: Floats = a @ b @ d
    return turned


def _bend(root: Floats, goal: Floats, upper: float, lower: float, pole: Floats) -> tuple[Floats, Floats]:
    """Solve two-bone inverse kinematics: return the middle joint and the end, both (T, 3), bent towards `pole`."""
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
