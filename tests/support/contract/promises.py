"""Map each promise of the contract to its tests."""

from __future__ import annotations

from collections.abc import Mapping

PROMISES: Mapping[str, tuple[str, ...]] = {
    # -- writing
    "Every byte that is written is stored, and nothing else": (
        "writing_stores_every_byte_and_nothing_else", "content_is_bytes_like_or_has_read",
        "one_file_is_copied_from_its_own_reader", "progress_is_reported_for_every_byte",
        "open_atomic_gives_a_writable_file",
        "open_atomic_takes_text_through_a_wrapper", "write_atomic_verifies_as_configured",
    ),
    "Writing creates missing directories": (
        "writing_creates_parents", "writing_creates_base_path", "upload_without_create_parents_needs_the_directory",
    ),
    "An existing file is replaced only with `overwrite=True`": (
        "writing_onto_an_existing_file_is_already_exists", "writing_with_overwrite_replaces",
        "a_write_without_overwrite_never_replaces_a_concurrent_file",
    ),
    "A dangling link counts as an existing file": (
        "a_dangling_link_is_an_occupied_name", "a_dangling_link_as_target_is_already_exists",
    ),
    "Writing to a directory or below a file is refused with that reason": (
        "writing_onto_a_folder_is_invalid_path", "writing_below_a_file_is_invalid_path",
    ),
    "A file appears under its name only when it is complete": (
        "the_final_name_appears_only_when_the_file_is_complete",
    ),
    "An interrupted write leaves the old content and no other file": (
        "open_atomic_leaves_the_target_as_it_was_on_any_error",
        "the_callers_own_exceptions_pass_unchanged_and_leave_nothing",
        "a_read_that_gives_text_is_a_type_error_and_leaves_nothing",
        "an_interrupted_write_leaves_the_old_content_or_the_new",
    ),
    "A replaced file keeps its mode": (
        "mode_bits_of_a_replaced_file_are_kept", "copy_keeps_the_mode_of_what_it_replaces",
    ),
    "Temporary files are never listed, and abandoned ones are removed": (
        "temporary_files_are_never_listed_and_never_found",
        "the_next_write_removes_stale_temporary_files_of_its_target",
        "stale_temporary_files_of_open_atomic_are_removed_too", "stale_temporary_files_are_removed_by_upload",
    ),
    "Concurrent uploads: one result for each, and no failure hides another": (
        "upload_many_gives_one_result_per_pair_in_order", "upload_many_tries_all_and_hides_no_failure",
    ),
    "An upload resumes after its connection is cut, with the correct bytes": (
        "an_interrupted_upload_resumes_and_stores_the_same_bytes",
        "interrupted_uploads_are_whole_or_absent_and_repeatable",
    ),
    # -- reading
    "Every byte is read, from any offset of the file": (
        "read_seekable_gives_a_file_that_seeks",
        "read_gives_a_seekable_buffered_reader", "read_gives_lines_and_text", "read_bytes_gives_the_whole_file",
        "several_readers_and_other_calls_do_not_disturb_each_other", "a_closed_reader_does_not_read",
    ),
    "Reading a missing file or a directory is refused with that reason": (
        "read_of_a_missing_file_is_not_found_at_the_call", "read_of_a_folder_is_invalid_path_at_the_call",
        "read_bytes_of_a_missing_file_is_not_found", "read_bytes_of_a_folder_is_invalid_path",
    ),
    "A download is complete or leaves the local file unchanged": (
        "download_stores_the_whole_file", "download_has_the_mode_that_the_umask_leaves_not_the_servers",
        "download_onto_an_existing_file_needs_overwrite",
        "download_of_a_missing_file_or_directory_keeps_the_local_file", "download_verifies_as_configured",
    ),
    "Concurrent downloads: one result for each, and no failure hides another": (
        "download_many_gives_one_result_per_pair_in_order", "download_many_tries_all_and_hides_no_failure",
    ),
    "A download resumes after its connection is cut, with the correct bytes": (
        "an_interrupted_download_resumes_and_has_the_same_bytes",
        "interrupted_downloads_are_whole_or_absent_and_repeatable",
    ),
    # -- looking
    "Files, directories and missing names are distinguished": (
        "exists_is_file_is_folder_distinguish_files_and_directories",
        "exists_is_file_is_folder_of_a_missing_path_are_false",
        "exists_is_file_is_folder_below_a_file_are_false",
        "check_health_is_none_on_a_folder_and_an_error_otherwise",
    ),
    "Size and time of a file are correct, for one file and for many": (
        "writing_returns_the_servers_modification_time",
        "get_file_info_gives_size_and_time_in_utc", "get_file_info_of_a_folder_is_invalid_path",
        "get_file_info_of_a_missing_file_is_not_found", "get_file_info_many_gives_each_file_or_why_there_is_none",
        "get_file_info_many_agrees_with_get_file_info_for_thousands",
        "get_folder_info_sums_up_all_levels", "get_folder_info_of_a_file_is_invalid_path",
        "get_folder_info_of_a_missing_directory_is_not_found",
    ),
    "The mode of a file is reported": ("get_file_info_gives_the_mode",),
    "Listings and patterns find every file, and nothing else": (
        "a_large_directory_is_listed_completely", "find_takes_several_patterns_and_gives_each_file_once_sorted",
        "groups_of_patterns_share_a_search_and_fail_separately", "list_files_descends_to_max_depth",
        "max_depth_is_ignored_without_recursive",
        "listings_give_files_folders_and_both", "listings_of_the_root_have_keys_without_a_leading_slash",
        "listings_of_missing_directories_or_files_are_empty", "special_files_are_not_listed",
        "a_relative_base_path_starts_at_the_login_folder",
    ),
    "A name is literal, whatever characters it contains": (
        "names_of_all_kinds_are_stored_listed_and_deleted",
        "find_takes_a_file_literally_and_not_as_a_pattern",
    ),
    "Names with non-ASCII characters are stored, listed and deleted": (
        "names_beyond_ascii_are_stored_listed_and_deleted",
    ),
    # -- moving and deleting
    "A move or copy keeps the content, and replaces only with `overwrite=True`": (
        "copy_onto_itself_only_checks_the_source", "move_renames_and_makes_parents",
        "move_onto_itself_only_checks_the_source",
        "a_move_removes_its_source_and_a_copy_keeps_it", "an_existing_target_is_already_exists",
        "overwrite_replaces_the_target", "empty_files_move_and_copy",
        "move_many_moves_what_it_can_and_explains_each_failure",
        "many_moves_and_deletions_of_files_beside_each_other",
    ),
    "A move or copy that is not possible is refused with the reason": (
        "a_missing_source_is_not_found", "a_folder_as_source_is_invalid_path", "a_folder_as_target_is_invalid_path",
        "a_file_in_the_targets_path_is_invalid_path",
    ),
    "Deleting a file deletes this file only": (
        "delete_removes_a_file_and_nothing_else", "delete_of_a_missing_file_is_not_found_unless_missing_ok",
        "delete_of_a_folder_is_invalid_path_with_missing_ok_too",
        "delete_many_deletes_what_it_can_and_explains_each_failure",
    ),
    "Deleting a directory deletes its contents and nothing outside of it": (
        "delete_folder_removes_an_empty_folder", "delete_folder_of_a_full_one_is_directory_not_empty",
        "delete_folder_of_a_missing_one_is_not_found_unless_missing_ok", "delete_folder_of_a_file_is_invalid_path",
        "delete_folder_deletes_a_tree_from_the_bottom_up",
        "delete_folder_deletes_special_files",
    ),
    # -- directories, modes, times and texts
    "A directory is created with its parents": (
        "make_folder_creates_the_directory_and_its_parents", "make_folder_can_refuse_an_existing_directory",
        "make_folder_onto_or_below_a_file_is_invalid_path",
    ),
    "Mode and times of a file or directory are set": (
        "set_mode_sets_the_mode_of_a_file_and_of_a_directory",
        "set_times_sets_the_times_of_a_file_and_of_a_directory", "set_times_takes_a_time_of_the_last_read",
        "modes_and_times_of_missing_names_are_not_found",
    ),
    "A text is written and read without changes": (
        "texts_are_written_and_read_with_their_line_ends", "write_text_onto_an_existing_file_needs_overwrite",
        "text_that_does_not_fit_the_encoding_names_the_file",
    ),
    # -- links
    "Links are followed if a path names them": (
        "exists_is_file_is_folder_follow_links", "a_link_that_the_caller_names_is_followed", "read_follows_a_link",
        "get_file_info_follows_a_link", "copy_follows_a_link", "writing_onto_a_link_to_a_folder_is_invalid_path",
    ),
    "A listing shows a link to a file as this file, and does not enter a link to a directory": (
        "links_to_files_are_listed_and_links_to_directories_not_entered",
        "a_walk_does_not_leave_base_path_through_a_link",
    ),
    "Moving, deleting or replacing a link does not change its target": (
        "a_replaced_link_is_replaced_itself",
        "move_of_a_link_moves_the_link", "delete_removes_a_link_and_not_its_target",
        "delete_folder_removes_links_and_never_enters_them",
    ),
    # -- the connection
    "One login serves all calls, also from several threads": (
        "all_calls_share_one_login", "calls_within_calls_share_the_connection",
        "twenty_threads_each_get_their_own_result", "unwrap_gives_parts_of_the_open_connection",
        "a_copy_has_the_settings_and_not_the_connection", "a_forked_process_has_a_connection_of_its_own",
        "an_open_reader_cannot_be_used_in_a_forked_child",
    ),
    "A connection is closed with its backend, and nothing stays open": (
        "a_closed_backend_is_forgotten_without_a_warning", "a_forgotten_open_backend_warns_and_does_not_leak",
        "close_is_idempotent_and_the_next_call_connects_again", "the_context_manager_closes",
        "a_call_that_ends_before_the_abort_deadline_is_undisturbed", "a_reader_ends_with_its_connection",
        "a_backend_without_reconnection_stays_lost_as_does_its_copy",
    ),
    "Queries and listings are repeated after the connection is cut": (
        "queries_and_listings_resume_after_a_lost_connection", "a_listing_begun_before_a_loss_resumes_after_it",
    ),
}  # fmt: skip


def promise_of(test: str) -> str:
    """Return the promise of a test, or the test's name."""
    name = test.removeprefix("test_")
    for promise, names in PROMISES.items():
        if name in names:
            return promise
    return name.replace("_", " ").capitalize()
