//! Git, as the supervisor needs it: checkout through a trusted git dir, taking over what the agent
//! left, counting what changed, pushing it. It owns everything that touches a repository, and opens
//! none on hostile ground: `work/.git` is read file by file, never by a git library.
