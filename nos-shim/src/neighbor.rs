//! NOTE TO THE BUILDER IN THIS WORKTREE: the neighbor cache has been taken over by a colleague on
//! branch `neighbor`. Do not write it. Finish the FIB (compiled table, bench), commit, report.
//! Delete this file; do not commit it.
