"""`posecode`: sentences by rule from the joints, in the form of an answer to the paper's question.

Standing or sitting, the place of each hand, the part that moves and its direction. The sentences are a function of the
encoder's own input, so every manifest and report labels them "derived from joints": they test the pipeline and are no
evidence for language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.joints import missing_joints
from c2vl_manifests.layouts import Layout
from c2vl_pipeline.engines import Array, Caption, Captioner, Crop, Pose

_ROLES: dict[str, tuple[str, ...]] = {
    "pelvis": ("spine_base", "hip_centre", "pelvis", "hip_left+hip_right"),
    "chest": ("spine_shoulder", "shoulder_centre", "neck", "shoulder_left+shoulder_right"),
    "head": ("head", "nose"),
    **{
        f"{joint}_{side}": (f"{joint}_{side}", f"{fallback}_{side}")
        for side in ("left", "right")
        for joint, fallback in (("hand", "wrist"), *((j, j) for j in ("shoulder", "hip", "knee", "ankle")))
    },
}
_SPAN = 4
"""Frames before and after the instant over which motion is judged (about a quarter of a second at 30 fps)."""

_HEAD = 1.4
"""Height of a head above the pelvis in torsos, where it is missing."""


def roles(layout: Layout) -> dict[str, list[int]]:
    """Return role -> joints whose mean stands for it; raise EngineError with the roles that a layout lacks."""
    joints_of: dict[str, list[int]] = {}
    for role, choices in _ROLES.items():
        present = (names.split("+") for names in choices if set(names.split("+")) <= set(layout.names))
        joints_of[role] = [layout.names.index(name) for name in next(present, [])]
    lacking = [role for role, joints in joints_of.items() if not joints]
    if lacking:
        raise EngineError(
            f"posecode needs joints that layout {layout.name!r} does not name: {', '.join(lacking)}; "
            "choose another captioner"
        )
    return joints_of


def _angle(a: Array, b: Array, c: Array) -> float:
    """Return the angle at b in degrees."""
    u, v = a - b, c - b
    cosine = float(u @ v) / max(float(np.linalg.norm(u) * np.linalg.norm(v)), 1e-9)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


class _Person:
    """One body at one instant: joints in units of the torso, in the body's own directions.

    Missing joints are NaN: no comparison with them holds, and what needs them is not said.
    """

    def __init__(self, clip: Array, at: int, layout: Layout) -> None:
        self.j = roles(layout)
        self.now = clip[at]
        self.torso = max(float(np.linalg.norm(self.at("chest") - self.at("pelvis"))), 1e-3)
        across = self.at("shoulder_right") - self.at("shoulder_left")
        across[1] = 0
        self.right = across / max(float(np.linalg.norm(across)), 1e-9)
        self.before, self.after = clip[max(at - _SPAN, 0)], clip[min(at + _SPAN, len(clip) - 1)]

    def at(self, role: str) -> Array:
        return self._joint(self.now, role)

    def _joint(self, frame: Array, role: str) -> Array:
        return np.asarray(frame[self.j[role]].mean(axis=0), np.float32)

    def height(self, role: str) -> float:
        """Return the height above the pelvis, in torsos."""
        return float(self.at(role)[1] - self.at("pelvis")[1]) / self.torso

    def moved(self, role: str) -> Array:
        """Return the displacement over the span, in torsos."""
        moved = self._joint(self.after, role) - self._joint(self.before, role)
        return np.asarray(moved / self.torso, np.float32)

    def posture(self) -> str:
        bent = [_angle(self.at(f"hip_{s}"), self.at(f"knee_{s}"), self.at(f"ankle_{s}")) for s in ("left", "right")]
        trunk = self.at("chest") - self.at("pelvis")
        lean = _angle(trunk, np.zeros_like(trunk), np.eye(len(trunk), dtype=np.float32)[1])
        bent = [angle for angle in bent if np.isfinite(angle)]
        if not bent:
            return "bending over" if lean > 40 else "seen in part"
        words = "sitting" if max(bent) < 125 else "crouching" if min(bent) < 105 else "standing"
        return words + (" and bending over" if lean > 40 else "")

    def hands(self) -> str:
        right, left = self.hand("right"), self.hand("left")
        if right.startswith("together") and left.startswith("together"):
            return "Both hands are together."
        return f"The right hand is {right} and the left hand is {left}."

    def hand(self, side: str) -> str:
        other = "left" if side == "right" else "right"
        place = self.at(f"hand_{side}")
        height, head = self.height(f"hand_{side}"), self.height("head")
        if not np.isfinite(height):
            return "not seen"
        head = head if np.isfinite(head) else _HEAD
        if np.linalg.norm(place - self.at("head")) < 0.55 * self.torso:
            return "near the face"
        if height > head + 0.15:
            return "raised above the head"
        if np.linalg.norm(place - self.at(f"hand_{other}")) < 0.45 * self.torso and height > 0.1:
            return f"together with the {other} hand"
        levels = {"at head height": head - 0.35, "at chest height": 0.55, "at waist height": 0.05}
        level = next((name for name, least in levels.items() if height > least), "down")
        outward = float((place - self.at(f"shoulder_{side}")) @ self.right) / self.torso
        outward = outward if side == "right" else -outward
        where = " out to the side" if outward > 0.55 else " across the body" if outward < -0.35 else ""
        return level + where

    def movement(self) -> str:
        """Describe the part that moves most, and its direction."""
        body = np.nan_to_num(self.moved("pelvis"))
        whole = float(np.linalg.norm(body))
        if abs(float(body[1])) > 0.25:
            return "getting up" if body[1] > 0 else "going down"
        parts = {f"the {s} hand": self.moved(f"hand_{s}") - body for s in ("left", "right")}
        parts |= {f"the {s} foot": self.moved(f"ankle_{s}") - body for s in ("left", "right")}
        sizes = {part: float(np.nan_to_num(np.linalg.norm(by))) for part, by in parts.items()}
        most = max(sizes, key=lambda part: sizes[part])
        if whole > 0.45 and sizes[most] < 2 * whole:
            return "walking"
        if sizes[most] < 0.18:
            return "holding still"
        hands = [sizes["the left hand"], sizes["the right hand"]]
        if most.endswith("hand") and min(hands) > 0.6 * max(hands):
            together = parts["the left hand"] + parts["the right hand"]
            return f"moving both hands {self._direction(np.asarray(together / 2, np.float32))}"
        speed = "quickly " if sizes[most] > 0.9 else ""
        return f"{speed}moving {most} {self._direction(parts[most])}"

    def _direction(self, by: Array) -> str:
        up, across = float(by[1]), float(by @ self.right)
        if abs(up) >= 0.7 * float(np.linalg.norm(by)):
            return "up" if up > 0 else "down"
        if abs(across) >= 0.7 * float(np.linalg.norm(by)):
            return "to the right" if across > 0 else "to the left"
        return "back and forth"


class PoseCode(Captioner):
    """Describes the joints around each crop's instant."""

    def __init__(self, spec: EngineSpec) -> None:
        if spec.options:
            raise EngineError(
                f"the captioner engine 'posecode' has no option {next(iter(spec.options))!r}; it has none"
            )

    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption]:
        """Return a few sentences per crop; the question is not read, its three parts shape the answer."""
        return [self._describe(crop.pose) for crop in crops]

    def _describe(self, pose: Pose | None) -> Caption:
        if pose is None:
            raise ValueError("posecode was given a crop without a pose")
        bodies = [b for b in range(pose.clip.shape[1]) if pose.clip[pose.at, b].any()]
        gone = missing_joints(pose.clip, pose.layout)
        clip = np.where(gone[..., None], np.float32(np.nan), pose.clip)
        people = [_Person(clip[:, b], pose.at, pose.layout) for b in bodies or [0]]
        first = people[0]
        sentences = []
        if len(people) > 1:
            apart = float(np.linalg.norm(people[0].at("pelvis") - people[1].at("pelvis"))) / first.torso
            near = "touching distance" if apart < 1.3 else "arm's length" if apart < 2.2 else "a distance"
            sentences.append(f"They are two people at {near}." if np.isfinite(apart) else "They are two people.")
        for who, person in zip(("The person", "The other person"), people, strict=False):
            sentences.append(f"{who} is {person.posture()}.")
            sentences.append(person.hands())
            sentences.append(f"{who} is {person.movement()}.")
        text = " ".join(sentences)
        return Caption(text, len(text.split()))

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that the stage's manifest records."""
        return {"backend": "posecode"}
