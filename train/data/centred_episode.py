"""An episode whose outlines say exactly what to draw: every object moved into the middle of its square.

In an ordinary episode objects lie anywhere, so an outline leaves the codes of every border undecided by a few pixels. A
model that draws needs one picture for each outline; a model that looks needs all of them.
"""

from __future__ import annotations

from dataclasses import replace

from mllm.world.edits import apply_edit
from mllm.world.episode import Episode
from mllm.world.outline import centre
from mllm.world.scene import Scene


def centre_episode(episode: Episode, *, digits: int) -> Episode:
    """The episode with its objects, and those of its edit, in the middle of the squares of outlines of so many digits.

    Objects move by half a square at most, never out of the cell that decides the split of their scene
    (mllm/world/splits.py), so the episode stays in its split.
    """
    moved = [centre(item, digits) for item in episode.scene.objects]
    scene, edit = Scene(episode.scene.background, tuple(moved)), episode.edit

    def new_index(index: int | None) -> int | None:
        return None if index is None else scene.objects.index(moved[index])

    added = edit.added and centre(edit.added, digits)
    edit = replace(edit, index=new_index(edit.index), anchor=new_index(edit.anchor), added=added)
    return replace(episode, scene=scene, edit=edit, edited=apply_edit(scene, edit))
