//! End to end: real processes, real sockets, the client library and the command line as people use them.
#![forbid(unsafe_code)]

mod smoke;
