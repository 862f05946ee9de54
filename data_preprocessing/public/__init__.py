"""Label sheets and folders of public cohorts."""
