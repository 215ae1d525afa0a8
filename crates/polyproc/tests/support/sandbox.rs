//! A sandbox for this process: system calls are refused, as by container profiles.

/// Makes these system calls fail with these errors from now on, in this process and all its descendants (`seccomp(2)`).
#[expect(unsafe_code, reason = "a filter has to be installed")]
pub(crate) fn refuse(calls: &[(libc::c_long, i32)]) {
    let instruction =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code.try_into().expect("16 bits"), jt, jf, k };
    let mut filter = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (number, error) in calls {
        let number = u32::try_from(*number).expect("a small number");
        filter.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 1));
        let refusal = libc::SECCOMP_RET_ERRNO | error.cast_unsigned();
        filter.push(instruction(libc::BPF_RET | libc::BPF_K, refusal, 0, 0));
    }
    filter.push(instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0));
    let len = u16::try_from(filter.len()).expect("a short program");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the call takes only numbers.
    let allowed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0;
    let (mode, all_threads) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the call reads a filter that outlives it.
    let installed = unsafe { libc::syscall(libc::SYS_seccomp, mode, all_threads, &raw const program) } == 0;
    assert!(allowed && installed, "{}", std::io::Error::last_os_error());
}
