fn main() {
    let offset = 1;
    let _ = polyproc::Process::new(|x: u32| x + offset, 2);
}
