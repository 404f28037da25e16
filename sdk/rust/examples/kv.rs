//! A key/value server whose pairs outlive its host: the protocol of `apps/kv`, with a replicated map behind it.
//!
//! ```text
//! checksync run --replicate structures --app kv --standby HOST:PORT … -- kv 127.0.0.1:7070
//! ```
//!
//! Where it is to be looked at from outside, it prints its address; `--preload N` puts pairs into a new map.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use checksync_sdk::{Map, StructureError, Structures};

const USAGE: &str = "usage: kv ADDRESS [PAIRS-TO-PRELOAD]";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or(USAGE)?;
    let preload: usize = arguments.next().map_or(Ok(0), |count| count.parse())?;
    let structures = Structures::open()?;
    let pairs = structures.map("pairs")?;
    if pairs.is_empty()? {
        fill(&pairs, preload)?;
    }
    let listener = TcpListener::bind(address)?;
    println!("listening {} term {} pairs {}", listener.local_addr()?, structures.term(), pairs.len()?);
    for client in listener.incoming() {
        let (client, pairs) = (client?, pairs.clone());
        // A client that is gone is no failure of ours.
        thread::spawn(move || drop(serve(&client, &pairs)));
    }
    Ok(())
}

fn fill(pairs: &Map, count: usize) -> Result<(), StructureError> {
    let mut last = None;
    for number in 0..count {
        last = Some(pairs.start_put(format!("{number:08}"), [b'.'; 64])?);
    }
    last.map_or(Ok(()), |last| last.wait())
}

fn serve(client: &TcpStream, pairs: &Map) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    for line in BufReader::new(client).lines() {
        let mut answer = answer(&line?, pairs).unwrap_or_else(|why| format!("ERROR {why}"));
        answer.push('\n');
        (&*client).write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn answer(request: &str, pairs: &Map) -> Result<String, StructureError> {
    let words: Vec<&str> = request.split(' ').collect();
    match words[..] {
        ["GET", key] => Ok(pairs
            .get(key)?
            .map_or("NONE".to_owned(), |value| format!("VALUE {}", String::from_utf8_lossy(&value)))),
        ["PUT", key, value] => pairs.put(key, value).map(|()| "OK".to_owned()),
        ["DEL", key] => pairs.delete(key).map(|()| "OK".to_owned()),
        _ => Ok("ERROR GET key, PUT key value, DEL key".to_owned()),
    }
}
