"""What scripts/mutate.py breaks: each promise by one text, and the tests that should notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A promise, broken."""

    name: str
    file: str
    """Below accel_flowers/."""
    old: str
    """Stands there exactly once."""
    new: str
    tests: tuple[str, ...]
    """What pytest is given, below tests/: the ones that should notice."""


MUTATIONS = (
    # Every image once, and the same on any number of processes
    Mutation(
        "exactly-once",
        "inference/loop.py",
        "    check_every_image_once(samples[kept], num_images)\n",
        "",
        ("test_evaluate_exact.py::test_an_evaluation_refuses_what_a_wrong_loader_gives",),
    ),
    Mutation(
        "average-buffers",
        "distributed/ddp.py",
        "    if accelerator.num_processes == 1:\n        return\n    moving = [",
        "    return\n    moving = [",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "average-not-asked-for",
        "training/epoch.py",
        "    average_buffers(network, run.accelerator)\n",
        "",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "own-buffers",
        "distributed/ddp.py",
        "        ddp.broadcast_buffers = False",
        "        pass",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "buckets",
        "distributed/ddp.py",
        "    for _ in range(2):  # the layout changes at the beginning of the second pass",
        "    for _ in range(0):",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "gradients-not-averaged",
        "training/step.py",
        "        output = task(model, inputs, targets)\n",
        '        output = task(getattr(model, "module", model), inputs, targets)\n',
        ("test_processes.py::test_losses_agree",),
    ),
    Mutation(
        "scaled-accumulation",
        "training/build.py",
        "    accelerator.gradient_accumulation_steps = plan.accumulation\n",
        "",
        ("test_train.py::test_accumulation_changes_nothing",),
    ),
    Mutation(
        "dropout-in-evaluation",
        "inference/loop.py",
        "    network.eval()\n",
        "",
        ("test_train.py::test_saved_model_scores_as_in_training",),
    ),
    # Order and chance follow from the position
    Mutation(
        "stream-starts-anew",
        "training/loop.py",
        "    run.stream.start_step = state.step\n",
        "    run.stream.start_step = 0\n",
        ("test_faults.py::test_killed_twice",),
    ),
    Mutation(
        "dropout-without-seed",
        "training/loop.py",
        '        seed_dropout(config.train.seed, batch["micro_batch"], accelerator.device)\n',
        "",
        ("test_interrupted.py::test_any_number_of_processes_goes_on",),
    ),
    Mutation(
        "augmentation-without-epoch",
        "data/dataset.py",
        'random_key(self._seed, "augment", key.epoch, key.sample)',
        'random_key(self._seed, "augment", key.sample)',
        ("test_batches.py",),
    ),
    Mutation(
        "augmentation-without-sample",
        "data/dataset.py",
        'random_key(self._seed, "augment", key.epoch, key.sample)',
        'random_key(self._seed, "augment", key.epoch)',
        ("test_selfcheck.py::test_chance_and_order_that_forget_their_place",),
    ),
    Mutation(
        "order-without-epoch",
        "data/sampler.py",
        'random_key(seed, "order", epoch)',
        'random_key(seed, "order", 0)',
        ("test_order.py",),
    ),
    Mutation(
        "balanced-without-turns",
        "data/sampler.py",
        "        return epoch * share + -((place - epoch * rest) // len(self._members))\n",
        "        return epoch * (share + (place < rest))\n",
        ("test_balanced.py::test_classes_and_their_images_take_turns",),
    ),
    Mutation(
        "balanced-showings-alike",
        "data/sampler.py",
        "shown.append(np.full((rounds == number).sum(), number))",
        "shown.append(np.full((rounds == number).sum(), epoch))",
        ("test_balanced.py::test_classes_and_their_images_take_turns",),
    ),
    # Losses and a teacher
    Mutation(
        "weighted-mean-of-a-micro-batch",
        "training/losses.py",
        "losses = losses * (soft_targets(targets, logits.shape[1]) @ inputs.weights)\n",
        "weights = soft_targets(targets, logits.shape[1]) @ inputs.weights\n            return (losses * weights).sum() / weights.sum()\n",
        ("test_losses.py::test_the_gradient_does_not_depend_on_how_a_batch_is_cut",),
    ),
    Mutation(
        "teacher-of-other-pixels",
        "training/distillation.py",
        "        pixels = inputs * self._factor + self._shift\n",
        "        pixels = inputs\n",
        ("test_distillation.py::test_the_teacher_sees_its_own_normalisation_and_the_students_classes",),
    ),
    Mutation(
        "teacher-of-other-order",
        "training/distillation.py",
        "scores.float()[:, self._order]",
        "scores.float()",
        ("test_distillation.py::test_the_teacher_sees_its_own_normalisation_and_the_students_classes",),
    ),
    Mutation(
        "teacher-not-recorded",
        "training/train.py",
        "    return own_parts(config) | described_teacher(config)\n",
        "    return own_parts(config)\n",
        ("test_distillation.py::test_another_teacher_is_noticed_when_a_run_goes_on",),
    ),
    Mutation(
        "head-without-seed",
        "training/build.py",
        '        torch.manual_seed(random_key(config.train.seed, "first weights"))\n',
        "",
        ("test_train.py::test_config_of_a_run_repeats_it",),
    ),
    # Processes that know of each other
    Mutation(
        "heartbeat-apart",
        "distributed/health.py",
        "            apart = [heard - together for heard, together in zip(self._heard_at, self._together_at, strict=True)]",
        "            apart = [0.0] * self._size",
        ("test_peers.py::test_a_process_that_takes_another_way_ends_all",),
    ),
    Mutation(
        "silence-unheard",
        "distributed/health.py",
        'if standing.state == "running" and silent[other] >',
        "if False and silent[other] >",
        ("test_peers.py::test_judge", "test_peers.py::test_a_process_that_is_killed_ends_the_other"),
    ),
    Mutation(
        "fingerprint-of-names",
        "data/content.py",
        '        "digest of their names and classes": random_key(*table.files, *map(int, table.labels)),\n',
        "",
        ("test_peers.py::test_processes_that_see_other_names_do_not_start",),
    ),
    Mutation(
        "fingerprint-of-the-split",
        "training/build_data.py",
        '        "digest of the split": random_key(*map(str, sorted(split.parts.items()))),\n',
        "",
        ("test_peers.py::test_images_that_differ_in_anything_are_told_apart",),
    ),
    Mutation(
        "configurations-not-compared",
        "distributed/session.py",
        "            check_same_everywhere(processes, facts)\n",
        "",
        ("test_peers.py::test_processes_that_differ_do_not_start",),
    ),
    Mutation(
        "signal-not-agreed",
        "distributed/preemption.py",
        "        stop, late = self._flags.any_before(self._signalled, late)",
        "        stop = self._signalled",
        ("test_faults.py::test_stopped_by_a_signal_to_one_process",),
    ),
    Mutation(
        "signal-in-an-evaluation-not-agreed",
        "distributed/preemption.py",
        "            if self._flags.any_before(self._signalled, False)[0]:",
        "            if self._signalled:",
        ("test_interrupted.py::test_a_signal_during_the_evaluation_waits_for_none_of_it",),
    ),
    # Checkpoints and the run directory
    Mutation(
        "manifest-not-checked",
        "training/checkpoint_folders.py",
        '        return f"{wrong[0]} is not what was written" if wrong else None',
        "        return None",
        ("test_checkpoint.py::test_a_damaged_checkpoint_is_passed_over",),
    ),
    Mutation(
        "best-one-not-checked",
        "training/checkpoint_folders.py",
        "found := self._damage(each)",
        "found := None",
        ("test_checkpoint.py::test_a_damaged_best_one_spoils_those_that_rely_on_it",),
    ),
    Mutation(
        "state-written-as-it-moves-on",
        "training/checkpoint.py",
        "            at = copy.deepcopy(state)\n",
        "            at = state\n",
        ("test_checkpoint.py::test_what_is_written_is_the_step_at_which_it_was_begun",),
    ),
    Mutation(
        "optimizer-not-restored",
        "training/checkpoint.py",
        '            load_whole_optimizer_state(network, optimizer, _fitted(saved["optimizer"], optimizer))\n',
        "",
        ("test_checkpoint.py::test_state_weights_and_optimizer_come_back",),
    ),
    Mutation(
        "lock-not-taken",
        "tracking/run_dir.py",
        "                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        ("test_interrupted.py::test_one_run_at_a_time",),
    ),
    Mutation(
        "overwritten-unasked",
        "tracking/run_dir.py",
        "        if begun and not is_trial:",
        "        if False:",
        ("test_train.py::test_nothing_is_overwritten",),
    ),
    # What a run ends with
    Mutation(
        "best-upside-down",
        "training/state.py",
        "(value if lower_is_better else -value)",
        "(-value if lower_is_better else value)",
        ("test_checkpoint.py::test_the_first_of_equal_values_is_the_best",),
    ),
    Mutation(
        "direction-of-the-metric-lost",
        "training/epoch.py",
        "lower_is_better=lower_is_better(metric),\n",
        "lower_is_better=False,\n",
        ("test_ema.py::test_both_are_scored_and_the_averaged_is_kept",),
    ),
    Mutation(
        "average-stands-still",
        "training/loop.py",
        "            run.ema.update(state.step - state.skipped_steps)",
        "            pass",
        ("test_ema.py",),
    ),
    Mutation(
        "weights-of-the-last-epoch",
        "training/choose.py",
        '    put_weights(network, weights, source="The best epoch\'s checkpoint")\n',
        "",
        ("test_train.py::test_a_run_ends_with_its_best_epoch",),
    ),
    Mutation(
        "worse-epochs-into-the-mean",
        "training/choose.py",
        "    return now <= then\n",
        "    return True\n",
        ("test_choose.py",),
    ),
    Mutation(
        "views-not-kept",
        "training/epoch.py",
        '{"tta": choice.tta, ',
        '{"tta": "none", ',
        ("test_choose.py::test_views_that_lower_the_loss_are_kept_and_served",),
    ),
    Mutation(
        "head-trains-with-the-rest",
        "training/phases.py",
        "        return min(1, num_layers)\n",
        "        return num_layers\n",
        ("test_phases.py::test_what_trains_when", "test_phases.py::test_the_backbone_stays_to_the_bit_and_moves_later"),
    ),
    Mutation(
        "one-rate-for-all-layers",
        "training/optim.py",
        '        group["lr"] = lr * group.get("lr_factor", 1.0)',
        '        group["lr"] = lr',
        ("test_layers.py",),
    ),
    Mutation(
        "test-part-scored-each-epoch",
        "training/epoch.py",
        '        scored_parts = {"val": _score(session, "val", run.network)}\n',
        '        scored_parts = {part: _score(session, part, run.network) for part in ("val", "test")}\n',
        ("test_train.py::test_run_directory_is_complete",),
    ),
    Mutation(
        "temperature-lost",
        "training/epoch.py",
        '"temperature": temperature}',
        '"temperature": None}',
        ("test_report.py::test_a_model_keeps_the_temperature_that_its_run_found",),
    ),
    # Numbers that go wrong
    Mutation(
        "nan-unseen",
        "training/loop.py",
        "        if log or due or stop:\n            _check_numbers(run, meter, lr)\n",
        "",
        ("test_numbers.py::test_a_loss_that_is_no_number_stops_the_run",),
    ),
    Mutation(
        "rate-not-halved",
        "training/state.py",
        "        return 0.5**self.rollbacks",
        "        return 1.0",
        ("test_numbers.py::test_rollback_goes_on_with_half_the_rate",),
    ),
    Mutation(
        "gradient-not-clipped",
        "training/step.py",
        "            if self.engine.sync_gradients and self.max_grad_norm is not None:",
        "            if False:",
        ("test_train.py::test_gradients_are_clipped_once_a_step",),
    ),
    Mutation(
        "mixing-left-out",
        "training/step.py",
        "        if self.mix:\n",
        "        if False:\n",
        ("test_own_parts.py",),
    ),
    Mutation(
        "sizes-by-place",
        "data/transforms/progressive.py",
        "        step = first // context.global_batch\n        progress = step * context.global_batch /",
        "        progress = first /",
        ("test_progressive.py::test_all_micro_batches_of_a_step_have_one_size",),
    ),
    Mutation(
        "stage-without-place",
        "training/manifold_mixup.py",
        'random_key(self.seed, "manifold", place)',
        'random_key(self.seed, "manifold", 0)',
        ("test_manifold_mixup.py::test_stages_are_even_and_shares_beta_distributed",),
    ),
    Mutation(
        "detours-mixed-in-part",
        "training/manifold_mixup.py",
        "                if missed <= max(",
        "                if True or missed <= max(",
        ("test_manifold_mixup.py::test_a_stage_that_another_way_leads_around_is_left_out",),
    ),
    Mutation(
        "start-not-kept",
        "training/state.py",
        "        start = set() if self.start_step is None else {self.start_step}\n",
        "        start: set[int] = set()\n",
        ("test_choose.py::test_a_run_ends_on_the_line_to_its_start",),
    ),
    Mutation(
        "climb-not-undone",
        "training/sam.py",
        "        for parameter, value in zip(parameters, before, strict=True):\n            parameter.copy_(value)\n",
        "        pass\n",
        ("test_sam.py::test_the_gradient_is_that_of_the_worst_weights_nearby",),
    ),
    Mutation(
        "statistics-of-two-looks",
        "training/sam.py",
        "                buffer.copy_(value)\n",
        "                pass\n",
        ("test_sam.py::test_statistics_and_right_answers_are_those_of_the_weights_as_they_are",),
    ),
    Mutation(
        "climb-with-other-dropout",
        "training/sam.py",
        "        with torch.random.fork_rng(\n            devices=",
        "        with torch.random.fork_rng(\n            enabled=False,\n            devices=",
        ("test_sam.py::test_both_passes_drop_the_same",),
    ),
    # Data and what may not be trusted
    Mutation(
        "duplicates-torn-apart",
        "data/split.py",
        "    return [numbers.setdefault(digest, len(numbers)) for digest in digests]",
        "    return list(range(len(digests)))",
        ("test_split.py", "test_inspect.py"),
    ),
    Mutation(
        "import-without-asking",
        "core/registry.py",
        "    if is_own_name(name):\n        known =",
        '    if is_own_name(name):\n        importlib.import_module(name.partition("/")[0])\n        known =',
        ("test_own_parts.py", "test_own_models.py"),
    ),
    # A probe is honest, and what it says is what its model does
    Mutation(
        "probe-learns-what-it-scores",
        "probe/cross_validate.py",
        "        learned, asked = np.flatnonzero(folds != fold)",
        "        learned, asked = np.arange(num_images)",
        ("test_probe.py::test_labels_by_lot_are_scored_at_chance",),
    ),
    Mutation(
        "probe-tears-copies-apart",
        "probe/pictures.py",
        "        groups[group] = group[0]\n",
        "        pass\n",
        ("test_probe.py::test_copies_do_not_help_each_other",),
    ),
    Mutation(
        "probe-without-mirror-images",
        "probe/features.py",
        "network(pixels.flip(-1) if space.mirrored else pixels)",
        "network(pixels)",
        ("test_probe.py::test_the_model_is_the_head_on_the_features",),
    ),
    Mutation(
        "probe-forgets-the-scaler",
        "probe/head.py",
        "(weights[-1].double() - scaled @ self.mean)",
        "weights[-1].double()",
        ("test_probe.py::test_heads_are_those_of_scikit_learn",),
    ),
    Mutation(
        "probe-takes-torn-features",
        "probe/store.py",
        "== int(checksums[row])",
        ">= 0",
        ("test_probe.py::test_a_store_keeps_what_is_whole",),
    ),
)
