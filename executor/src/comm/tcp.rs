//! A wire over TCP for processes that a launcher started without MPI (torchrun, `srun`): rank 0 is met at `MASTER_ADDR`,
//! tells everybody where the others listen, and every pair of ranks gets a connection.
//!
//! A thread per connection reads all the time, so a sender never waits for a receiver to be ready.

use super::process::Wire;
use crate::error::{ExecutorError, Result, unsupported};
use crate::launch::Launch;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// How long ranks wait for each other at the start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Length that says goodbye: the connection ends because its rank has finished.
const GOODBYE: u64 = u64::MAX;

/// What a connection's reader tells.
type Arrival = (usize, std::result::Result<Vec<u8>, String>);

/// This process among those of a launcher.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    /// Connection to every other rank.
    peers: Vec<Option<RefCell<TcpStream>>>,
    arrivals: Receiver<Arrival>,
}

fn failed(what: &str, error: &io::Error) -> ExecutorError {
    ExecutorError::Communicator { library: "TCP", reason: format!("{what}: {error}") }
}

fn number(stream: &mut TcpStream) -> io::Result<u64> {
    let mut word = [0; 8];
    stream.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

fn put(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(&(message.len() as u64).to_le_bytes())?;
    stream.write_all(message)
}

/// Connects, again and again until somebody listens.
fn reach(address: &str) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(failed(&format!("nobody at {address} within {} s", PATIENCE.as_secs()), &error));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The next connection, or an error when nobody comes.
fn accept(listener: &TcpListener, what: &str) -> Result<(TcpStream, SocketAddr)> {
    let wrong = |e: io::Error| failed(what, &e);
    listener.set_nonblocking(true).map_err(wrong)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false).map_err(wrong)?;
                return Ok((stream, from));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(failed(what, &e)),
        }
    }
}

impl Tcp {
    /// Meets the other processes of this launch.
    ///
    /// # Errors
    /// When no launcher started this process, it does not say where rank 0 is, or the ranks do not find each other.
    pub fn join() -> Result<Self> {
        let hint = "start with torchrun or srun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT";
        match Launch::from_environment()? {
            Some(launch) => Self::meet(&launch),
            None => unsupported("ranks over TCP: no launcher started this process", hint),
        }
    }

    /// Meets the other processes of `launch`.
    ///
    /// # Errors
    /// As [`Tcp::join`].
    pub fn meet(launch: &Launch) -> Result<Self> {
        let (rank, world) = (launch.rank, launch.world);
        let mut streams: Vec<Option<TcpStream>> = (0..world).map(|_| None).collect();
        if world > 1 {
            let Some((host, port)) = &launch.master else {
                return unsupported("ranks over TCP: nobody says where rank 0 is", "set MASTER_ADDR");
            };
            if rank == 0 {
                Self::receive_all(*port, &mut streams)?;
            } else {
                Self::introduce(rank, &format!("{host}:{port}"), &mut streams)?;
            }
        }
        let (sender, arrivals) = channel();
        let mut peers = Vec::with_capacity(world);
        for (peer, stream) in streams.into_iter().enumerate() {
            let Some(stream) = stream else {
                peers.push(None);
                continue;
            };
            // Small messages must not wait for more to send.
            stream.set_nodelay(true).map_err(|e| failed("socket option", &e))?;
            let reader = stream.try_clone().map_err(|e| failed("second handle", &e))?;
            let sender = sender.clone();
            std::thread::spawn(move || read_all(peer, reader, &sender));
            peers.push(Some(RefCell::new(stream)));
        }
        Ok(Self { rank, peers, arrivals })
    }

    /// Rank 0: takes everybody's address and tells all of them.
    fn receive_all(port: u16, streams: &mut [Option<TcpStream>]) -> Result<()> {
        let listener = TcpListener::bind(("0.0.0.0", port))
            .map_err(|e| failed(&format!("listening on port {port}"), &e))?;
        let wrong = |e: io::Error| failed("meeting the ranks", &e);
        let mut addresses = vec![String::new(); streams.len()];
        for _ in 1..streams.len() {
            let (mut stream, from) = accept(&listener, "waiting for ranks")?;
            let (rank, port) = (number(&mut stream).map_err(wrong)?, number(&mut stream).map_err(wrong)?);
            let slot = streams.get_mut(rank as usize).filter(|s| s.is_none() && rank > 0);
            let Some(slot) = slot else {
                return Err(ExecutorError::Communicator {
                    library: "TCP",
                    reason: format!("rank {rank} introduced itself twice or is not of this run"),
                });
            };
            addresses[rank as usize] = address(from.ip(), port);
            *slot = Some(stream);
        }
        let table = addresses.join(" ");
        for stream in streams.iter_mut().flatten() {
            put(stream, table.as_bytes()).map_err(wrong)?;
        }
        Ok(())
    }

    /// Other ranks: tell rank 0 where they listen, connect to the ranks below and wait for those above.
    fn introduce(rank: usize, master: &str, streams: &mut [Option<TcpStream>]) -> Result<()> {
        let wrong = |e: io::Error| failed("meeting the ranks", &e);
        let listener = TcpListener::bind(("0.0.0.0", 0)).map_err(wrong)?;
        let port = listener.local_addr().map_err(wrong)?.port();
        let mut first = reach(master)?;
        for word in [rank as u64, u64::from(port)] {
            first.write_all(&word.to_le_bytes()).map_err(wrong)?;
        }
        let length = number(&mut first).map_err(wrong)?;
        let mut table = vec![0; usize::try_from(length).unwrap_or(0).min(1 << 24)];
        first.read_exact(&mut table).map_err(wrong)?;
        let table = String::from_utf8_lossy(&table).into_owned();
        streams[0] = Some(first);
        // The table's first word is rank 0's, which is empty.
        for (peer, address) in table.split(' ').enumerate().take(rank).skip(1) {
            let mut stream = reach(address)?;
            stream.write_all(&(rank as u64).to_le_bytes()).map_err(wrong)?;
            streams[peer] = Some(stream);
        }
        for _ in rank + 1..streams.len() {
            let (mut stream, _) = accept(&listener, "waiting for ranks above")?;
            let peer = number(&mut stream).map_err(wrong)? as usize;
            if let Some(slot) = streams.get_mut(peer) {
                *slot = Some(stream);
            }
        }
        Ok(())
    }
}

fn address(ip: IpAddr, port: u64) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

fn read_all(peer: usize, mut stream: TcpStream, sender: &Sender<Arrival>) {
    loop {
        let message = number(&mut stream).and_then(|length| {
            if length == GOODBYE {
                return Ok(None);
            }
            let mut message = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            stream.read_exact(&mut message)?;
            Ok(Some(message))
        });
        let arrival = match message {
            Ok(Some(message)) => Ok(message),
            Ok(None) => return,
            Err(error) => Err(error.to_string()),
        };
        let last = arrival.is_err();
        if sender.send((peer, arrival)).is_err() || last {
            return;
        }
    }
}

impl Wire for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn post(&self, to: usize, message: Vec<u8>) -> Result<()> {
        match self.peers.get(to) {
            Some(Some(stream)) => put(&mut stream.borrow_mut(), &message)
                .map_err(|e| failed(&format!("sending to rank {to}"), &e)),
            _ => {
                Err(ExecutorError::Communicator { library: "TCP", reason: format!("there is no rank {to}") })
            }
        }
    }

    fn poll(&self) -> Result<Option<(usize, Vec<u8>)>> {
        match self.arrivals.try_recv() {
            Ok((from, Ok(message))) => Ok(Some((from, message))),
            Ok((from, Err(reason))) => Err(ExecutorError::Peer {
                rank: self.rank,
                reason: format!("rank {from} has gone: {reason}"),
            }),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(None),
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for stream in self.peers.iter().flatten() {
            // A peer that has gone needs no goodbye.
            let _ = stream.borrow_mut().write_all(&GOODBYE.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{Comm, Process};
    use crate::launch::Launcher;
    use crate::mesh::Group;
    use psim_models::operator::Dimension;

    fn on_ranks<R: Send>(world: usize, work: impl Fn(Process<Tcp>) -> R + Sync) -> Vec<R> {
        // A free port, given back just before it is used.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..world)
                .map(|rank| {
                    let work = &work;
                    let master = Some(("127.0.0.1".to_owned(), port));
                    let launch =
                        Launch { launcher: Launcher::Torchrun, rank, world, local_rank: rank, master };
                    scope.spawn(move || work(Process::new(Tcp::meet(&launch).unwrap())))
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_meet_and_add_up() {
        for world in [1, 2, 5] {
            let sums = on_ranks(world, |process| {
                let comm = Comm::new(&process);
                let group = Group { ranks: (0..world).collect(), index: comm.rank() };
                let mine: Vec<f32> = (0..10_000).map(|i| (i * (group.index + 1)) as f32).collect();
                comm.all_reduce(Dimension::Dp, &group, mine).unwrap()
            });
            let factor: usize = (1..=world).sum();
            for sum in sums {
                assert_eq!(sum[9_999], (9_999 * factor) as f32);
            }
        }
    }

    #[test]
    fn a_rank_that_goes_is_noticed() {
        let outcomes = on_ranks(2, |process| {
            let comm = Comm::new(&process);
            if comm.rank() == 1 {
                process.stop("no memory");
                return String::new();
            }
            comm.receive(Dimension::Pp, 1, super::super::Tag::Bucket(0)).unwrap_err().to_string()
        });
        assert!(outcomes[0].contains("no memory"), "{outcomes:?}");
    }
}
