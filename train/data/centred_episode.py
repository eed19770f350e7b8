"""An episode whose outlines say exactly what to draw: every object moved into the middle of its square.

In an ordinary episode objects lie anywhere, so an outline leaves the codes of every border undecided by a few pixels. A
model that draws needs one picture for each outline; a model that looks needs all of them.
"""

from __future__ import annotations

from dataclasses import replace

from mllm.layout import Grid
from mllm.world.edits import apply_edit
from mllm.world.episode import Episode
from mllm.world.outline import SQUARE, centre
from mllm.world.scene import Scene
from mllm.world.splits import split_of


def centre_episode(episode: Episode, *, digits: int, grid: Grid = SQUARE) -> Episode:
    """The episode with its objects, and those of its edit, in the middle of the squares of outlines of so many digits.

    Objects move by half a square at most: by half an eighth of a position with two digits, so that their gap shrinks
    and stays. In pictures that are no squares this can bring a scene into another split (mllm/world/splits.py); such an
    episode stays as it is.
    """
    moved = [centre(item, digits=digits, grid=grid) for item in episode.scene.objects]
    scene, edit = Scene(episode.scene.background, tuple(moved)), episode.edit

    def new_index(index: int | None) -> int | None:
        return None if index is None else scene.objects.index(moved[index])

    added = edit.added and centre(edit.added, digits=digits, grid=grid)
    edit = replace(edit, index=new_index(edit.index), anchor=new_index(edit.anchor), added=added)
    centred = replace(episode, scene=scene, edit=edit, edited=apply_edit(scene, edit))
    stays = all(
        split_of(before) == split_of(after)
        for before, after in ((episode.scene, centred.scene), (episode.edited, centred.edited))
    )
    return centred if stays else episode
