//! Key services: real ones where they can be had, invented ones for what those do not do.

mod attacks;
mod aws_kms;
mod http;
mod kms;
mod moto;
mod node;
mod notices;
mod pkcs11;
mod pool;
mod recipient;
mod vault;
mod vault_stub;
mod world;
mod write_only;
