"""Speed and memory, side by side: the authors' approach stated plainly, and this project's."""
