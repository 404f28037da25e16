//! The network of a cell and the gate of strong mode, on real namespaces and real connections. What a client
//! may hear is what an ear on the client's own device hears.

mod address;
mod gate_holds;
mod holder;
mod hostile;
mod ingress;
mod streams;
mod world;
