//! Sockets, time and tasks.
